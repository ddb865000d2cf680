import { app } from "../../scripts/app.js";

// Fills in %date:yyyy-MM-dd% and %Node.widget% in file names, which ComfyUI's frontend does for its own nodes only.

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
    if (!fill || typeof prefix !== "string") return prefix;
    return prefix.replace(/%[^%]+%/g, (placeholder) => {
        const value = fill(app, placeholder);
        return value === placeholder || placeholder.startsWith("%date:") ? value : shortened(value);
    });
}

// A value may be a whole prompt, too long for a file name. The limits are those of ultragen_core/video/prefix.py.
function shortened(value) {
    const bytes = new TextEncoder().encode([...value].slice(0, 60).join(""));
    return new TextDecoder().decode(bytes.subarray(0, 120), { stream: true }); // drops an incomplete last character
}
