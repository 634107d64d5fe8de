"""From numbers to pictures: figures, panels, colours, labels."""
