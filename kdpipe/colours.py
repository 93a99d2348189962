"""The colours of all figures and overlays.

They are those of Okabe and Ito (2008, "Color Universal Design"), which the colour-blind tell apart.
"""

from __future__ import annotations

BLACK, GREY, LIGHT, WHITE = "#000000", "#666666", "#D0D0D0", "#FFFFFF"
BLUE, ORANGE, SKY, GREEN = "#0072B2", "#E69F00", "#56B4E9", "#009E73"
VERMILLION, PURPLE, YELLOW = "#D55E00", "#CC79A7", "#F0E442"
