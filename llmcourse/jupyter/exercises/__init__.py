"""The checks of the exercises, one file a chapter: chapter 08's are in `ch08.py`."""
