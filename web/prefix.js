import { app } from "../../scripts/app.js";

// %date:yyyy-MM-dd% and %Node.widget% in a file's name: ComfyUI's page fills them in for its own nodes only.

app.registerExtension({
    name: "ultragen.prefix",
    nodeCreated(node) {
        if (node.comfyClass !== "UltraGenSaveVideo") return;
        const widget = node.widgets?.find((widget) => widget?.name === "filename_prefix");
        if (widget) widget.serializeValue = () => filledIn(widget.value);
    },
});

function filledIn(prefix) {
    const fill = window.comfyAPI?.utils?.applyTextReplacements;
    return fill && typeof prefix === "string" ? fill(app, prefix) : prefix;
}
