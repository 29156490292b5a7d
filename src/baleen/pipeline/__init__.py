"""A recipe run stage by stage in one folder: typed sections, frozen values, and going on after a kill."""
