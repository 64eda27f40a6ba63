"use strict";
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);

  find("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("selfplay-theme", root.dataset.theme); } catch (error) { /* not kept */ }
  });

  const articles = [...document.querySelectorAll("#deck > article")];
  if (!articles.length) return;
  const list = find("list"), search = find("search"), marks = find("marks"), filters = [...document.querySelectorAll("[data-filter]")];
  const state = { filter: "all", query: "", marks: "previous", current: articles[0] };
  let visible = articles;
  const lowered = new Map();

  const haystack = (article) => {
    if (!lowered.has(article)) lowered.set(article, article.textContent.toLowerCase());
    return lowered.get(article);
  };
  const passes = (article) => state.filter === "all" ? article.dataset.outcome !== "training" : article.dataset.outcome === state.filter
    || article.dataset.flags.split(" ").includes(state.filter);

  /* The list of prompts beside the transcript. */
  const entries = new Map(articles.map((article) => {
    const entry = document.createElement("li"), button = document.createElement("button"), sign = document.createElement("span");
    button.type = "button";
    sign.className = "chip " + article.dataset.outcome;
    sign.textContent = { win: "win", loss: "loss", tie: "tie", unscored: "none", training: "train" }[article.dataset.outcome];
    button.append(sign, " " + article.querySelector("blockquote").textContent.slice(0, 90));
    button.addEventListener("click", () => show(article));
    entry.append(button);
    return [article, entry];
  }));
  list.append(...entries.values());

  /* Words that differ: longest common subsequence, on text nodes only. */
  const common = (a, b) => {
    const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    const inA = new Uint8Array(a.length), inB = new Uint8Array(b.length);
    for (let i = 0, j = 0; i < a.length && j < b.length;)
      if (a[i] === b[j]) { inA[i++] = 1; inB[j++] = 1; }
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
      else j++;
    return [inA, inB];
  };
  const texts = new Map();
  const mark = (article) => {
    const boxes = [...article.querySelectorAll(".sides pre")];
    if (!texts.has(article)) texts.set(article, boxes.map((box) => box.textContent));
    const parts = texts.get(article).map((text) => text.split(/(\s+)/)); /* words at even places, spaces between */
    const words = parts.map((one) => one.filter((_, i) => i % 2 === 0));
    const tags = words.map((one) => new Array(one.length).fill(""));
    if (state.marks !== "off")
      for (let k = 1; k < boxes.length; k++) {
        const against = state.marks === "first" ? 0 : k - 1;
        if (words[k].length * words[against].length > 9e6) continue;
        const [before, after] = common(words[against], words[k]);
        after.forEach((kept, i) => { if (!kept) tags[k][i] = "ins"; });
        if (against === k - 1) before.forEach((kept, i) => { if (!kept && !tags[against][i]) tags[against][i] = "del"; });
      }
    boxes.forEach((box, k) => {
      box.textContent = "";
      let run = "", tag = "";
      const flush = () => {
        if (!run) return;
        const node = document.createElement(tag || "span");
        node.textContent = run;
        box.append(node);
        run = "";
      };
      parts[k].forEach((part, i) => {
        const own = i % 2 === 0 ? tags[k][i / 2] : tags[k][(i - 1) / 2] === tags[k][(i + 1) / 2] ? tag : "";
        if (own !== tag) { flush(); tag = own; }
        run += part;
      });
      flush();
    });
  };

  const remember = () => {
    const parts = [state.current.id];
    if (state.filter !== "all") parts.push("f=" + state.filter);
    if (state.query) parts.push("q=" + encodeURIComponent(state.query));
    try { history.replaceState(null, "", "#" + parts.join("&")); } catch (error) { /* a sandboxed page has no history */ }
  };
  const draw = (scroll) => {
    const index = visible.indexOf(state.current);
    articles.forEach((article) => article.classList.toggle("current", article === state.current && index >= 0));
    entries.forEach((entry, article) => {
      entry.classList.toggle("current", article === state.current);
    });
    find("position").textContent = visible.length ? `${index + 1} of ${visible.length}` : "0 of 0";
    find("nothing").hidden = visible.length > 0;
    find("previous").disabled = index <= 0;
    find("next").disabled = index < 0 || index >= visible.length - 1;
    if (index < 0) return;
    mark(state.current);
    const entry = entries.get(state.current);
    if (list.offsetParent) list.scrollTop = entry.offsetTop - list.offsetTop - list.clientHeight / 2 + entry.clientHeight / 2;
    const top = find("stage").getBoundingClientRect().top;
    if (scroll && (top < 40 || top > innerHeight * 0.6)) scrollBy(0, top - find("steps").offsetHeight - 12);
  };
  const show = (article, scroll = false) => { state.current = article; remember(); draw(scroll); };
  const step = (by) => {
    const next = visible[visible.indexOf(state.current) + by];
    if (next) show(next, true);
  };
  const refresh = () => {
    const query = state.query.toLowerCase();
    visible = articles.filter((article) => passes(article) && (!query || haystack(article).includes(query)));
    const kept = new Set(visible);
    entries.forEach((entry, article) => { entry.hidden = !kept.has(article); });
    if (!kept.has(state.current) && visible.length) state.current = visible[0];
    filters.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter)));
    remember();
    draw(false);
  };

  filters.forEach((button) => button.addEventListener("click", () => { state.filter = button.dataset.filter; refresh(); }));
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = search.value.trim(); refresh(); }, 120);
  });
  marks.addEventListener("change", () => { state.marks = marks.value; draw(false); });
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) { if (event.key === "Escape") search.blur(); return; }
    if (event.target === marks) return;
    const digit = Number(event.key);
    if (event.key === "ArrowRight" || event.key === "j") step(1);
    else if (event.key === "ArrowLeft" || event.key === "k") step(-1);
    else if (event.key === "/") { find("transcripts").scrollIntoView(); search.focus(); }
    else if (event.key === "m") { marks.selectedIndex = (marks.selectedIndex + 1) % marks.length; state.marks = marks.value; draw(false); }
    else if (digit >= 1 && digit <= filters.length) filters[digit - 1].click();
    else return;
    event.preventDefault();
  });

  const [anchor, ...rest] = location.hash.slice(1).split("&");
  for (const part of rest) {
    if (part.startsWith("f=") && filters.some((button) => button.dataset.filter === part.slice(2))) state.filter = part.slice(2);
    if (part.startsWith("q=")) { try { state.query = search.value = decodeURIComponent(part.slice(2)); } catch (error) { /* not ours */ } }
  }
  const linked = /^t\d+$/.test(anchor) ? articles[Number(anchor.slice(1)) - 1] : null;
  if (linked) state.current = linked;
  const query = state.query.toLowerCase();
  visible = articles.filter((article) => passes(article) && (!query || haystack(article).includes(query)));
  entries.forEach((entry, article) => { entry.hidden = !visible.includes(article); });
  filters.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter)));
  if (visible.length && !visible.includes(state.current)) state.current = visible[0];
  draw(Boolean(linked));
})();
