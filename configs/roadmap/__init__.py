"""The roadmap from StyleGAN2 to R3GAN ([P] section 4 and Table 2): one recipe a configuration."""
