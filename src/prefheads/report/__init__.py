"""What to look at after a run: figures, findings in plain words, and a report page."""
