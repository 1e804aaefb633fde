"""The colours of figures, from the Okabe-Ito palette: one colour means one thing everywhere."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY, AMBER = "#E69F00", "#56B4E9", "#8A8F98", "#B8860B"
BROWN = "#7A5230"
ARM_COLOURS = {
    "full_precision": BLUE, "ternary": VERMILION, "post_training": PURPLE, "int8": ORANGE,
    "int4": BROWN, "hybrid": GREEN, "checkpoint": SKY,
    "speculative": AMBER,
}  # fmt: skip
