// Runs before the first paint, so that a chosen theme does not flash. The key of the API is never stored.
"use strict";
try {
  const theme = localStorage.getItem("dami-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's theme.
}
