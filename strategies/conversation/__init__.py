"""The conversation with the silos: who they are, what is asked, which answers count."""
