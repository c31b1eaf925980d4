"""The paper's studies: each takes a model and its images and gives back a table."""
