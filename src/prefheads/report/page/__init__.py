"""The report itself: its files and its page."""
