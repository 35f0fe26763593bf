"""A full-screen editor in which the model writes along: the document, its files, its screen."""
