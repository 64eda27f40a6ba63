"use strict";
(() => {
  let seen = null;
  setInterval(async () => {
    try {
      const version = await (await fetch("/version", { cache: "no-store" })).text();
      if (seen !== null && version !== seen && document.activeElement !== document.getElementById("search")) location.reload();
      seen = version;
    } catch (error) { /* the server has ended: the page stays as it is */ }
  }, 3000);
})();
