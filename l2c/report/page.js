"use strict";

// Tables: a click on a column's name sorts by it, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const of = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [of(a), of(b)];
      return x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
    table.tBodies[0].append(...rows);
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}

// Graphs: the cell under the pointer, or under the cursor that the arrow keys move, is said in words.
for (const graph of document.querySelectorAll(".graph")) {
  const data = JSON.parse(graph.querySelector("script").textContent);
  const svg = graph.querySelector("svg");
  const cursor = graph.querySelector(".cursor");
  const said = graph.querySelector(".said");
  let row = 0, column = 0;
  const say = () => {
    cursor.setAttribute("x", data.left + column * data.size);
    cursor.setAttribute("y", data.top + row * data.size);
    cursor.style.visibility = "visible";
    const decision = data.decisions[parseInt(data.rows[row][column], 36)];
    said.textContent = `evaluation ${row}, t ${data.timesteps[row]}, ${data.layers[column]}: ${decision}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const [r, c] = [Math.floor((at.y - data.top) / data.size), Math.floor((at.x - data.left) / data.size)];
    if (r < 0 || c < 0 || r >= data.rows.length || c >= data.layers.length) return;
    [row, column] = [r, c];
    say();
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = Math.min(Math.max(row + step[0], 0), data.rows.length - 1);
    column = Math.min(Math.max(column + step[1], 0), data.layers.length - 1);
    say();
  });
}
