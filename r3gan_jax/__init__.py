"""R3GAN in JAX and Flax, and the GANs before it.

[P], in this package: Huang, Gokaslan, Kuleshov, Tompkin, "The GAN is dead; long live the GAN! A Modern GAN Baseline",
NeurIPS 2024, https://arxiv.org/abs/2501.05441.
"""
