"""Renders the showroom's sprites from the CC0 furniture of Debian's `sweethome3d-furniture`. Run inside Blender:

    apt-get install blender sweethome3d-furniture
    mkdir furniture && unzip -d furniture /usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f
    blender -b -P src/data/showroom/render_sprites.py -- furniture src/data/showroom/sprites [ITEM ...]

For every row of `catalogue.csv` it writes `<item>.webp`, the RGBA views side by side, and `<item>.maps.webp`, whose red
channel is depth (0 nearest, 255 farthest point of the item) and whose green channel is the shadow on the ground
(255 fully dark). `<item>.json` holds the geometry of each view. Items that are already there are left alone, so the job
resumes. One key light from the front left and a white sky light every item, so that sprites of one picture agree.

About 15 seconds an item on two cores.
"""

import csv
import json
import math
import sys
import tempfile
from pathlib import Path

import bmesh
import bpy
import numpy as np
from mathutils import Matrix, Vector

FRAME = 224  # pixels, side of a rendered view
FIELD_OF_VIEW = math.radians(20)
ELEVATIONS = (9, 21)  # degrees above the horizon from which the camera looks at the item
YAWS = (0, 32, -40)  # degrees the item is turned about its vertical axis
FILL = 0.62  # share of the frame that the item's largest extent may take; the rest is for its shadow


def reset() -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = 16
    scene.cycles.max_bounces = 4
    scene.cycles.use_denoising = False
    scene.render.threads_mode = "FIXED"
    scene.render.threads = 2
    scene.render.resolution_x = scene.render.resolution_y = FRAME
    scene.render.film_transparent = True
    scene.render.use_persistent_data = True
    scene.view_settings.view_transform = "Standard"
    scene.view_layers[0].use_pass_z = True
    scene.render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
    scene.render.image_settings.color_depth = "32"
    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs[0].default_value = (1, 1, 1, 1)
    world.node_tree.nodes["Background"].inputs[1].default_value = 0.6
    scene.world = world
    sun = bpy.data.objects.new("key", bpy.data.lights.new("key", "SUN"))
    sun.data.energy = 2.2
    sun.data.angle = math.radians(18)
    sun.rotation_euler = Vector((-0.62, -0.45, 1.0)).to_track_quat("Z", "Y").to_euler()
    scene.collection.objects.link(sun)


def load(path: Path, size_cm: tuple[float, float, float], rotation: Matrix) -> tuple[bpy.types.Object, list]:
    """The item as (pivot, meshes): centred, standing on z = 0, `size_cm` (width, depth, height) large, front to -y."""
    bpy.ops.wm.obj_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y")
    meshes = [o for o in bpy.context.scene.objects if o.type == "MESH"]
    pivot = bpy.data.objects.new("pivot", None)
    bpy.context.scene.collection.objects.link(pivot)
    to_blender = Matrix(((1, 0, 0), (0, 0, -1), (0, 1, 0)))
    turn = (to_blender @ rotation @ to_blender.transposed()).to_4x4()
    for mesh in meshes:
        mesh.data.validate()  # some models hold degenerate faces, which crash Cycles
        mesh.data.transform(turn @ mesh.matrix_world)
        mesh.matrix_world = Matrix.Identity(4)
    corners = np.array([v.co for m in meshes for v in m.data.vertices])
    low, high = corners.min(0), corners.max(0)
    scale = np.array(size_cm) / np.maximum(high - low, 1e-6)
    place = Matrix.Diagonal((*scale, 1)) @ Matrix.Translation(
        -Vector(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]))
    )
    for mesh in meshes:
        mesh.data.transform(place)
        mesh.parent = pivot
        unstick(mesh, max(size_cm))
        for slot in mesh.material_slots:
            if slot.material and slot.material.use_nodes:
                for node in slot.material.node_tree.nodes:
                    if node.type == "BSDF_PRINCIPLED":
                        node.inputs["Roughness"].default_value = max(0.35, node.inputs["Roughness"].default_value)
    return pivot, meshes


def unstick(mesh: bpy.types.Object, size: float) -> None:
    """Faces that lie in one another, which render as speckle: doubles go, other materials rise by a hair."""
    form = bmesh.new()
    form.from_mesh(mesh.data)
    seen, doubles = set(), []
    for face in form.faces:
        corners = tuple(sorted(tuple(round(c / size * 2e4) for c in v.co) for v in face.verts))
        if corners in seen:
            doubles.append(face)
        seen.add(corners)
    bmesh.ops.delete(form, geom=doubles, context="FACES_ONLY")
    borders = [e for e in form.edges if len({f.material_index for f in e.link_faces}) > 1]
    bmesh.ops.split_edges(form, edges=borders)
    for vertex in form.verts:
        if vertex.link_faces:
            vertex.co += vertex.normal * (vertex.link_faces[0].material_index * size * 4e-4)
    form.to_mesh(mesh.data)
    form.free()


def read(path: str, want: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The wanted channels ("Combined", "Depth") of a multilayer EXR, as (height, width, channels)."""
    import OpenImageIO as oiio

    file = oiio.ImageInput.open(path)
    names = file.spec().channelnames
    pixels = np.asarray(file.read_image("float")).reshape(file.spec().height, file.spec().width, -1)
    file.close()
    found = {}
    for layer in want:
        order = "RGBA" if layer == "Combined" else "Z"
        found[layer] = np.stack([pixels[..., names.index(f"ViewLayer.{layer}.{c}")] for c in order], -1)
    return found


def srgb(linear: np.ndarray) -> np.ndarray:
    """Display values of linear light; highlights above 0.55 roll off, so that white things keep their shading."""
    linear = np.where(linear < 0.55, linear, 0.55 + 0.45 * (1 - np.exp(-(linear - 0.55) / 0.45))).clip(0, 1)
    return np.where(linear < 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def render(folder: Path) -> dict[str, np.ndarray]:
    path = str(folder / "view.exr")
    bpy.context.scene.render.filepath = path
    bpy.ops.render.render(write_still=True)
    return read(path, ("Combined", "Depth"))


def save(path: Path, pixels: np.ndarray, quality: int) -> None:
    from PIL import Image

    Image.fromarray((pixels * 255 + 0.5).astype(np.uint8)).save(path, "WEBP", quality=quality, method=6)


def views(row: dict, furniture: Path, rotation: Matrix, scratch: Path) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    reset()
    size = (float(row["width_cm"]), float(row["depth_cm"]), float(row["height_cm"]))
    model = furniture / "blendswap-cc-0" / row["item"] / f"{row['item']}.obj"
    if not model.exists():
        model = next(furniture.rglob(f"{row['item']}.obj"))
    pivot, meshes = load(model, size, rotation)
    scene = bpy.context.scene
    bpy.ops.mesh.primitive_plane_add(size=max(size) * 12)
    ground = bpy.context.object
    ground.is_shadow_catcher = True
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    camera.data.angle = FIELD_OF_VIEW
    camera.data.clip_end = 1e5
    corners = np.array(
        [[x * size[0] / 2, y * size[1] / 2, z * size[2]] for x in (-1, 1) for y in (-1, 1) for z in (0, 1)]
    )
    colours, maps, geometry = [], [], []
    for elevation in ELEVATIONS:
        for yaw in YAWS:
            pivot.rotation_euler = (0, 0, math.radians(yaw))
            turn = np.array(Matrix.Rotation(math.radians(yaw), 3, "Z"))
            placed = corners @ turn.T
            e = math.radians(elevation)
            backward = np.array([0, -math.cos(e), math.sin(e)])
            right, up = np.array([1, 0, 0]), np.array([0, math.sin(e), math.cos(e)])
            target = np.array([0, 0, size[2] / 2])
            half = FILL * math.tan(FIELD_OF_VIEW / 2)
            relative = placed - target
            reach = np.maximum(abs(relative @ right), abs(relative @ up)) / half + relative @ backward
            distance = float(reach.max())
            camera.matrix_world = Matrix(
                np.vstack([np.column_stack([right, up, backward, target + distance * backward]), [0, 0, 0, 1]])
            )
            bpy.context.view_layer.update()

            ground.hide_render = True
            for mesh in meshes:
                mesh.visible_camera = True
            item = render(scratch)
            ground.hide_render = False
            for mesh in meshes:
                mesh.visible_camera = False
            shadow = render(scratch)["Combined"][..., 3]

            rgba = item["Combined"]
            alpha = rgba[..., 3:].clip(0, 1)
            straight = srgb(rgba[..., :3] / np.maximum(alpha, 1e-4)) * (alpha > 0)
            z = item["Depth"][..., 0]
            solid = (alpha[..., 0] > 0.5) & (z < 1e5)
            near, far = (float(z[solid].min()), float(z[solid].max())) if solid.any() else (distance, distance + 1)
            depth = np.where(z < 1e5, ((z - near) / max(far - near, 1e-3)).clip(0, 1), 1)
            colours.append(np.concatenate([straight, alpha], -1))
            maps.append(np.stack([depth, shadow.clip(0, 1), np.zeros_like(depth)], -1))
            anchor = -target
            along = distance - anchor @ backward
            focal = FRAME / 2 / math.tan(FIELD_OF_VIEW / 2)
            geometry.append(
                {
                    "elevation": elevation,
                    "yaw": yaw,
                    "pixels_per_cm": focal / along,  # at the ground point under the item's centre
                    "anchor": [
                        FRAME / 2 + focal * float(anchor @ right) / along,
                        FRAME / 2 - focal * float(anchor @ up) / along,
                    ],
                    "near_cm": near - along,  # of the item's nearest and farthest point, against that ground point
                    "far_cm": far - along,
                }
            )
    return np.concatenate(colours, 1), np.concatenate(maps, 1), geometry


def attribute(catalogue: Path, target: Path) -> None:
    """Names the authors of the models, which CC0 does not ask for."""
    with open(catalogue, newline="") as file:
        rows = [f"| {r['item']} | {r['name']} | {r['creator']} |" for r in csv.DictReader(file)]
    head = """# Attribution

The sprites are rendered from 3D models of the library "Blend Swap CC-0" of Sweet Home 3D (Debian package
`sweethome3d-furniture`, file `BlendSwap-CC-0.sh3f`): models by the authors below, published on www.blendswap.com under
CC0 1.0 (public domain), cleaned and converted by Emmanuel Puybaret / eTeks. The sprites are CC0 1.0 as well.

| model | shown as | author |
|---|---|---|
"""
    target.write_text(head + "\n".join(rows) + "\n")


def main(furniture: Path, target: Path, only: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    rotations = {}
    model = ""
    for line in (furniture / "PluginFurnitureCatalog.properties").read_text(encoding="latin1").splitlines():
        key, _, value = line.partition("=")
        if key.startswith("model#"):
            model = Path(value).stem
        if key.startswith("modelRotation#"):
            v = [float(x) for x in value.split()]
            rotations[model] = Matrix((v[:3], v[3:6], v[6:]))
    with open(here / "catalogue.csv", newline="") as file, tempfile.TemporaryDirectory() as scratch:
        for row in csv.DictReader(file):
            item = row["item"]
            if (only and item not in only) or (target / f"{item}.json").exists():
                continue
            colours, maps, geometry = views(row, furniture, rotations.get(item, Matrix.Identity(3)), Path(scratch))
            save(target / f"{item}.webp", colours, 82)
            save(target / f"{item}.maps.webp", maps, 80)
            (target / f"{item}.json").write_text(json.dumps({"frame": FRAME, "views": geometry}))
            print("rendered", item, flush=True)
    attribute(here / "catalogue.csv", target / "ATTRIBUTION.md")


if __name__ == "__main__":
    arguments = sys.argv[sys.argv.index("--") + 1 :]
    main(Path(arguments[0]), Path(arguments[1]), arguments[2:])
