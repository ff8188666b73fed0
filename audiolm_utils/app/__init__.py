"""The command line and the web demo: the only room that talks to a person."""
