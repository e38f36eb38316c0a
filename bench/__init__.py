"""`make bench`: this worker beside what one would pick instead. Not part of the wheel."""
