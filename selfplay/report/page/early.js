document.documentElement.classList.add("scripts");
try {
  const theme = localStorage.getItem("selfplay-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) { /* storage may be forbidden in a local file */ }
