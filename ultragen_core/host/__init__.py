"""Where the core meets ComfyUI: patchers, the memory manager, sampling hooks. The only floor that imports comfy."""
