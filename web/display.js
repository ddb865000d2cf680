export const MARGIN = 10; // pixels that ComfyUI leaves on every side of a widget's element

/** Add a widget that shows `element`, `height()` pixels high, and is not saved in prompts or workflows. */
export function display(node, name, element, height) {
    const outer = () => height() + 2 * MARGIN;
    element.style.color = "var(--fg-color)"; // newer frontends fade what widgets inherit
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false, // in prompts
        hideOnZoom: false,
        hideInPanel: true, // beside the canvas, which would show the name alone
        margin: MARGIN,
        getMinHeight: outer,
        getMaxHeight: outer,
    });
    widget.serialize = false; // in workflows
    return widget;
}
