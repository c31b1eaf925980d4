"""From numbers to verdicts: the written rules of the claims, and the record that a notebook leaves."""
