"""The maths of number formats in plain torch: the reference that every kernel and exporter is held against."""
