"""The GANs before R3GAN, one recipe each, at sizes that a CPU can train. Scores: docs/results/README.md."""
