"""Models as files: `.keras` and SavedModel."""
