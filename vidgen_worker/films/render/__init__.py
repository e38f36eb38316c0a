"""What the render child does: pictures, sound and files of one output, scene by scene.

It runs behind the child's walls, and knows nothing of tasks, users or places beyond one folder.
"""
