"""Foreign formats, one module each; format.py has what they share."""
