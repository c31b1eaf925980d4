"""Measuring a model the way Table 2 does: columns of images, one verdict an image, figures with intervals."""
