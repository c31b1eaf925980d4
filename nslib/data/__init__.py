"""Images: procedural shapes, ImageNet-style folders, data sets of torch, and the 15 corruptions."""
