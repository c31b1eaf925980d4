"""The models behind the notebooks: which a profile asks for, made once, measured once, kept, and side by side."""
