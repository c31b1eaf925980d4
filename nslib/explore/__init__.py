"""One noise over one image, moved by hand, with what the model makes of it beside."""
