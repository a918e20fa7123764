"""Colors of all reports and of the live view, visible on light and dark pages. One color has one meaning."""

from __future__ import annotations

BLUE, ORANGE, GREEN, RED, GRAY = "#3f7fbf", "#d9822b", "#3a9a6b", "#cc4b5a", "#8a929c"

STATE_COLORS = {"running": GREEN, "finished": BLUE, "stopped": ORANGE, "failed": RED, "interrupted": GRAY}
"""Colors of trials by state, in the order of the legend."""
BEST, DEFAULT = "#8a45d0", "#0f9fa8"
"""Colors of the best trial and of the default configuration's."""
GOAL_SCALE = [[0, BEST], [0.5, "#b48fd0"], [1, "#a3a9b0"]]
"""Color scale of the goal, from the lowest value, the best, to the highest."""
TIME, OTHER_TIME, MEMORY = "#64788c", "rgba(100, 120, 140, 0.4)", "#b39b72"
"""Colors of costs: training or step time, wall-clock time, and memory."""
NEUTRAL = TIME
"""Color of bars that are no trials, such as importances."""

CASE_COLORS = (BLUE, ORANGE, GREEN, RED, "#8a63b8", GRAY, "#b8860b", "#4aa3a3")
"""Colors of a comparison's cases, in this order; a comparison shows no states."""
