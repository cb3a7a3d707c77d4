"""How good are the faces? The protocol, its measures, and what the reader of a run gets to see."""
