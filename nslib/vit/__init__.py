"""A vision transformer of timm in the stages of the paper, its attention as it runs, and its files of weights."""

from nslib.mkl import settle

settle()  # whatever computes imports this package first
