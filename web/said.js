import { app } from "../../scripts/app.js";
import { display } from "./display.js";

// ComfyUI itself shows how far a running node is, and the video that it made. What a node says at its end, such as the
// size that it chose or the files that it wrote, would stay in the server's answer.
app.registerExtension({
    name: "ultragen.said",
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("UltraGen")) return;
        const onExecuted = node.onExecuted;
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            show(node, [output?.text ?? []].flat().join("\n"));
        };
    },
});

const NAME = "ultragen.said";
const LINE = 15; // pixels
const MOST_LINES = 6;

function show(node, text) {
    const said = node.widgets?.find((widget) => widget?.name === NAME) ?? (text && add(node));
    if (!said?.element) return;
    said.element.textContent = text;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

function add(node) {
    const element = document.createElement("div");
    Object.assign(element.style, {
        boxSizing: "border-box",
        font: `11px/${LINE}px sans-serif`,
        overflow: "auto",
        overflowWrap: "anywhere",
        padding: "2px 6px",
        userSelect: "text",
        whiteSpace: "pre-wrap",
    });
    // Six pixels a letter: the element itself cannot be measured before it is drawn.
    const width = () => Math.max(60, node.size[0] - 40);
    const lines = () => element.textContent.split("\n").map((line) => Math.ceil((6 * line.length) / width()));
    const height = () => 4 + LINE * Math.min(MOST_LINES, lines().reduce((a, b) => a + b, 0));
    return display(node, NAME, element, height);
}
