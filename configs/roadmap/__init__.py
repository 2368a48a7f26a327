"""The roadmap from StyleGAN2 to R3GAN ([P] section 3 and Table 2): one recipe a configuration."""
