"""Perturbations that change nothing (`patch`) or almost nothing (`encoder`), and how it is told (`membership`)."""
