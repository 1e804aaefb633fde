"""What the page, the figures and the terminal say alike: names, numbers, sentences, orders."""
