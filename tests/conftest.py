"""What holds for every test: Hypothesis judges no test by time, and leaves no files."""

from hypothesis import settings

settings.register_profile("here", database=None, deadline=None)
settings.load_profile("here")
