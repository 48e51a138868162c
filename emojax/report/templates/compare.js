// A field above a table leaves the rows that hold all of its words.
for (const field of document.querySelectorAll("input[data-rows]")) {
  const rows = [...document.querySelectorAll(`#${field.dataset.rows} tbody tr`)], texts = rows.map((row) => row.textContent.toLowerCase());
  const count = document.getElementById(`${field.dataset.rows}-count`);
  const choose = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); shown += !row.hidden; });
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  field.addEventListener("input", choose);
  choose();
}
