"""The shape of a head: a subject's skull and face from the templates in data/templates."""
