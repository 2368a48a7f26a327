"""The GANs before R3GAN, one recipe each, at the sizes that a CPU trains in minutes."""
