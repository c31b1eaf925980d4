"""Adversarial images in pixel space: by gradient, by patch, by search, and made beforehand on another network."""
