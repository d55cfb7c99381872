"""Images of more than one domain: sources joined, shifts weighed, steps chosen."""
