"""The sections of a page, each a function of a run's files; pure but for reading them."""
