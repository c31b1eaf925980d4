"""How long work runs: in one process or several, one maker at a time, repeated on a GPU, with a bar."""
