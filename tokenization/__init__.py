"""An episode becomes integers and back; pure functions, no input or output."""
