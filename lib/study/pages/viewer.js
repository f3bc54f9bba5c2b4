"use strict";
// Transforms are arrays of twelve numbers, the upper three rows of a 4x4 matrix, row by row. Metres, radians.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

// ---- packed numbers ----------------------------------------------------------------------------------------------

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function unpack({ shape, scale, int16 }) {
  const values = Float32Array.from(new Int16Array(bytes(int16).buffer), (value) => value * scale);
  // row(i, j, ...) is what lies at the first indices, without a copy.
  const row = (...indices) => {
    const size = shape.slice(indices.length).reduce((product, side) => product * side, 1);
    const index = indices.reduce((sum, at, axis) => sum * shape[axis] + at, 0);
    return values.subarray(index * size, (index + 1) * size);
  };
  return { shape, values, row };
}

const hands = data.hands.map((hand) => {
  const unpacked = {};
  for (const [name, value] of Object.entries(hand)) {
    unpacked[name] = name === "triangles" ? new Uint32Array(bytes(value).buffer) : unpack(value);
  }
  return unpacked;
});

function unpackPoses(poses) {
  return { ...poses, hand: hands[poses.hand], angles: unpack(poses.angles), wrists: unpack(poses.wrists) };
}

const recordings = data.recordings.map((recording) => ({
  ...recording,
  cameras: unpack(recording.cameras),
  frusta: unpack(recording.frusta),
  truth: recording.truth && unpackPoses(recording.truth),
  methods: recording.methods.map(unpackPoses),
  crops: { ...recording.crops, focal: unpack(recording.crops.focal), cameras: unpack(recording.crops.cameras) },
}));

// ---- the hand: as lib/hands.py poses it --------------------------------------------------------------------------

function apply(transform, x, y, z) {
  return [0, 4, 8].map((i) => transform[i] * x + transform[i + 1] * y + transform[i + 2] * z + transform[i + 3]);
}

function compose(first, second) {
  const result = new Float64Array(12);
  for (let row = 0; row < 12; row += 4) {
    for (let column = 0; column < 4; column++) {
      result[row + column] = first[row] * second[column] + first[row + 1] * second[4 + column]
        + first[row + 2] * second[8 + column] + (column === 3 ? first[row + 3] : 0);
    }
  }
  return result;
}

// The turn by an angle about an axis through a position.
function joint(axis, position, angle) {
  const length = Math.hypot(...axis);
  const [x, y, z] = axis.map((value) => value / length);
  const sine = Math.sin(angle), cosine = Math.cos(angle), rest = 1 - cosine;
  const turn = [
    cosine + x * x * rest, x * y * rest - z * sine, x * z * rest + y * sine, 0,
    y * x * rest + z * sine, cosine + y * y * rest, y * z * rest - x * sine, 0,
    z * x * rest - y * sine, z * y * rest + x * sine, cosine + z * z * rest, 0,
  ];
  const turned = apply(turn, ...position);
  [3, 7, 11].forEach((index, row) => { turn[index] = position[row] - turned[row]; });
  return turn;
}

// The transforms of the 17 bones: HandModel.bones.
function bonesOf(hand, angles, wrist) {
  const bones = [wrist, wrist];
  for (let first = 0; first < 20; first += 4) {
    const [a, b, c, d] = [0, 1, 2, 3].map(
      (k) => joint(hand.axes.row(first + k), hand.joints.row(first + k), angles[first + k]));
    const proximal = compose(wrist, compose(a, b));
    const intermediate = compose(proximal, c);
    bones.push(proximal, intermediate, compose(intermediate, d));
  }
  return bones;
}

// Linear blend skinning: hands.skin.
function skin(points, weights, bones) {
  const posed = new Float32Array(points.values.length);
  const blended = new Float64Array(12);
  for (let i = 0; i < points.shape[0]; i++) {
    blended.fill(0);
    weights.row(i).forEach((weight, bone) => {
      if (weight) for (let k = 0; k < 12; k++) blended[k] += weight * bones[bone][k];
    });
    posed.set(apply(blended, ...points.row(i)), 3 * i);
  }
  return posed;
}

// Landmarks and, if the hand has one, mesh of a hand in a frame; null where it is not shown.
function pose(poses, hand, frame) {
  if (!poses || !poses.shown[hand][frame]) return null;
  const model = poses.hand;
  const bones = bonesOf(model, poses.angles.row(hand, frame), poses.wrists.row(hand, frame));
  return {
    landmarks: skin(model.landmarks, model.landmarkWeights, bones),
    vertices: model.vertices && skin(model.vertices, model.weights, bones),
    triangles: model.triangles,
  };
}

function normalsOf(vertices, triangles) {
  const normals = new Float32Array(vertices.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
    const u = [0, 1, 2].map((k) => vertices[b + k] - vertices[a + k]);
    const v = [0, 1, 2].map((k) => vertices[c + k] - vertices[a + k]);
    const normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += normal[k];
  }
  return normals;
}

// ---- state -------------------------------------------------------------------------------------------------------

const HOME = { yaw: 0.65, pitch: 0.3, distance: 0.64 };
const state = { recording: 0, method: 0, frame: 0, truth: true, playing: false, speed: 1, view: { ...HOME } };
const shown = () => recordings[state.recording];
const method = () => shown().methods[state.method];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgb = (name) => [1, 3, 5].map((start) => parseInt(color(name).slice(start, start + 2), 16) / 255);
const SIDES = ["left", "right"];

// ---- the 3D view -------------------------------------------------------------------------------------------------

const VERTEX = `#version 300 es
in vec3 position, normal;
uniform mat4 clip_from_stage;
out vec3 place, side;
void main() {
  place = position;
  side = normal;
  gl_Position = clip_from_stage * vec4(position, 1.0);
}`;
// kind 0: lines, 1: a solid surface, 2: a translucent one, which is densest at its outline.
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 place, side;
uniform vec3 color, eye;
uniform int kind;
out vec4 result;
void main() {
  vec3 towards = normalize(eye - place);
  float facing = kind == 0 ? 1.0 : abs(dot(normalize(side), towards));
  float above = kind == 0 ? 0.0 : normalize(side).y;
  float light = kind == 0 ? 1.0 : 0.6 + 0.45 * facing + 0.15 * above;
  float shine = kind == 1 ? 0.15 * pow(facing, 4.0) : 0.0;
  float opacity = kind == 2 ? 0.2 + 0.7 * pow(1.0 - facing, 1.6) : 1.0;
  result = vec4((color * (kind == 2 ? 1.0 : light) + shine) * opacity, opacity);
}`;

const scene = element("scene");
const gl = scene.getContext("webgl2", { alpha: false, antialias: true });
let program, locations, positions, normals, indices;

function shader(kind, source) {
  const compiled = gl.createShader(kind);
  gl.shaderSource(compiled, source);
  gl.compileShader(compiled);
  gl.attachShader(program, compiled);
}

function prepare() {
  program = gl.createProgram();
  shader(gl.VERTEX_SHADER, VERTEX);
  shader(gl.FRAGMENT_SHADER, FRAGMENT);
  ["position", "normal"].forEach((name, index) => gl.bindAttribLocation(program, index, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  locations = {};
  for (const name of ["clip_from_stage", "color", "eye", "kind"]) locations[name] = gl.getUniformLocation(program, name);
  [positions, normals, indices] = [gl.createBuffer(), gl.createBuffer(), gl.createBuffer()];
  gl.enableVertexAttribArray(0);
  gl.enable(gl.DEPTH_TEST);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
}

function upload(buffer, attribute, values) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  gl.vertexAttribPointer(attribute, 3, gl.FLOAT, false, 0, 0);
}

function drawLines(points, name) {
  upload(positions, 0, points);
  gl.disableVertexAttribArray(1);
  gl.uniform1i(locations.kind, 0);
  gl.uniform3fv(locations.color, rgb(name));
  gl.drawArrays(gl.LINES, 0, points.length / 3);
}

function drawHand(posed, name, translucent) {
  if (!posed.vertices) {
    drawLines(Float32Array.from(data.edges.flat().flatMap((i) => [...posed.landmarks.subarray(3 * i, 3 * i + 3)])), name);
    return;
  }
  upload(positions, 0, posed.vertices);
  gl.enableVertexAttribArray(1);
  upload(normals, 1, normalsOf(posed.vertices, posed.triangles));
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, indices);
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, posed.triangles, gl.DYNAMIC_DRAW);
  gl.uniform1i(locations.kind, translucent ? 2 : 1);
  gl.uniform3fv(locations.color, rgb(name));
  gl.drawElements(gl.TRIANGLES, posed.triangles.length, gl.UNSIGNED_INT, 0);
}

const PYRAMID = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]]; // the tip is 0

function frustumLines(frame) {
  const { cameras, frusta } = shown();
  return Float32Array.from(Array.from({ length: cameras.shape[1] }, (_, camera) =>
    PYRAMID.flat().flatMap((corner) => apply(cameras.row(frame, camera), ...frusta.row(camera, corner)))).flat());
}

// Column by column, as WebGL takes it; the eye goes round the middle of the hands.
function clipFromStage(eye, aspect) {
  const length = Math.hypot(...eye), back = eye.map((value) => value / length);
  const flat = Math.hypot(back[0], back[2]);
  const right = [back[2] / flat, 0, -back[0] / flat];
  const up = [back[1] * right[2], back[2] * right[0] - back[0] * right[2], -back[1] * right[0]];
  const zoom = 2.2 * Math.min(1, aspect / 1.5), near = 0.02, far = 10;
  const depth = (near + far) / (near - far);
  const columns = [];
  for (let k = 0; k < 3; k++) columns.push((zoom / aspect) * right[k], zoom * up[k], depth * back[k], -back[k]);
  return columns.concat([0, 0, -depth * length + (2 * near * far) / (near - far), length]);
}

function drawScene(tracked, truth) {
  const width = Math.round(scene.clientWidth * devicePixelRatio), height = Math.round(scene.clientHeight * devicePixelRatio);
  if (scene.width !== width || scene.height !== height) [scene.width, scene.height] = [width, height];
  const { yaw, pitch, distance } = state.view;
  const eye = [Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch)].map((x) => distance * x);
  gl.viewport(0, 0, width, height);
  gl.clearColor(...rgb("panel"), 1);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.uniformMatrix4fv(locations.clip_from_stage, false, clipFromStage(eye, width / height));
  gl.uniform3fv(locations.eye, eye);
  drawLines(frustumLines(state.frame), "faint");
  tracked.forEach((posed, hand) => posed && drawHand(posed, SIDES[hand], false));
  gl.enable(gl.BLEND);
  gl.depthMask(false);
  truth.forEach((posed) => posed && drawHand(posed, "true", true));
  gl.depthMask(true);
  gl.disable(gl.BLEND);
}

// ---- crops and curve ---------------------------------------------------------------------------------------------

const cropCanvases = [...document.querySelectorAll("#crops canvas")];

function drawSkeleton(context, landmarks, camera, focal, stroke) {
  const center = (data.cropSize - 1) / 2;
  const pixels = Array.from({ length: landmarks.length / 3 }, (_, i) => {
    const [x, y, z] = apply(camera, ...landmarks.subarray(3 * i, 3 * i + 3));
    return [focal * x / z + center + 0.5, focal * y / z + center + 0.5];
  });
  context.strokeStyle = stroke;
  context.lineWidth = 0.9;
  context.beginPath();
  for (const [start, end] of data.edges) {
    context.moveTo(...pixels[start]);
    context.lineTo(...pixels[end]);
  }
  context.stroke();
}

function drawCrops(tracked, truth) {
  const { crops } = shown(), size = data.cropSize;
  const row = state.frame % data.sheetFrames, sheet = crops.images[(state.frame - row) / data.sheetFrames];
  cropCanvases.forEach((canvas, index) => {
    const hand = index >> 1, view = index & 1, context = canvas.getContext("2d");
    context.setTransform(canvas.width / size, 0, 0, canvas.height / size, 0, 0);
    context.clearRect(0, 0, size, size);
    if (view >= crops.views[state.frame][hand]) {
      context.fillStyle = "#c0c6cc";
      context.font = "9px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText("not seen", size / 2, size / 2);
      return;
    }
    if (sheet.complete) context.drawImage(sheet, index * size, row * size, size, size, 0, 0, size, size);
    const camera = crops.cameras.row(state.frame, hand, view), focal = crops.focal.row(state.frame, hand, view)[0];
    if (truth[hand]) drawSkeleton(context, truth[hand].landmarks, camera, focal, "#20c997");
    if (tracked[hand]) drawSkeleton(context, tracked[hand].landmarks, camera, focal, ["#e8702a", "#56b4e9"][hand]);
  });
}

const GUTTER = 50, THUMB = 9; // what lies beside the curve: labels, and half of the slider's thumb

function drawCurve() {
  const canvas = element("curve"), { frames } = shown();
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  const every = shown().methods.flatMap((one) => one.errors.flat()).filter((error) => error !== null);
  const top = Math.max(10, 10 * Math.ceil(Math.max(0, ...every) / 10));
  const x = (frame) => GUTTER + THUMB + frame / Math.max(1, frames - 1) * (width - GUTTER - 2 * THUMB);
  const y = (error) => height - 9 - error / top * (height - 18);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = color("quiet");
  context.strokeStyle = color("grid");
  context.textAlign = "right";
  for (const error of every.length ? [0, top / 2, top] : []) {
    context.strokeRect(GUTTER + THUMB, y(error), width - GUTTER - 2 * THUMB, 0);
    context.fillText(`${error} mm`, GUTTER, y(error) + 4);
  }
  if (!every.length) context.fillText("no true hands: no error is known", width - THUMB, 20);
  context.lineWidth = 2;
  method().errors.forEach((errors, hand) => {
    context.strokeStyle = color(SIDES[hand]);
    context.setLineDash(hand ? [6, 3] : []);
    context.beginPath();
    errors.forEach((error, frame) => {
      if (error === null) return;
      const begins = frame === 0 || errors[frame - 1] === null;
      context[begins ? "moveTo" : "lineTo"](x(frame), y(error));
    });
    context.stroke();
  });
  context.setLineDash([]);
  context.fillStyle = color("text");
  context.fillRect(x(state.frame) - 0.75, 0, 1.5, height);
}

const millimetres = (error) => error === null ? "—" : `${error.toFixed(1)} mm`;

function meanError(errors) {
  const known = errors.filter((error) => error !== null);
  return known.length ? known.reduce((sum, error) => sum + error) / known.length : null;
}

function describe() {
  const { frames, framesPerSecond } = shown(), { errors } = method();
  const now = errors.map((of, hand) => `${SIDES[hand]} ${millimetres(of[state.frame])}`).join(", ");
  const time = (state.frame / framesPerSecond).toFixed(2);
  element("reading").textContent = `Frame ${state.frame + 1} of ${frames}, ${time} s · error ${now}`;
  element("frame").setAttribute("aria-valuetext", `${state.frame + 1} of ${frames}`);
}

// ---- what the reader does ----------------------------------------------------------------------------------------

let requested = false;

function draw() {
  requested = false;
  const tracked = [0, 1].map((hand) => pose(method(), hand, state.frame));
  const truth = [0, 1].map((hand) => state.truth ? pose(shown().truth, hand, state.frame) : null);
  if (gl && !gl.isContextLost()) drawScene(tracked, truth);
  drawCrops(tracked, truth);
  drawCurve();
  describe();
}

function redraw() {
  if (!requested) requestAnimationFrame(draw);
  requested = true;
}

function show(frame) {
  state.frame = (frame + shown().frames) % shown().frames;
  element("frame").value = state.frame;
  redraw();
}

function play(playing) {
  state.playing = playing;
  element("play").textContent = playing ? "Pause" : "Play";
  element("reading").setAttribute("aria-live", playing ? "off" : "polite");
  if (!playing) return;
  let last = performance.now(), due = 0;
  const tick = (now) => {
    if (!state.playing) return;
    due += (now - last) / 1000 * shown().framesPerSecond * state.speed;
    last = now;
    if (due >= 1) show(state.frame + Math.floor(due));
    due %= 1;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function step(frames) {
  play(false);
  show(state.frame + frames);
}

function choose(list, items) {
  list.replaceChildren(...items.map((name, index) => new Option(name, index)));
}

function open(index) {
  state.recording = index;
  element("recording").value = index;
  const { crops, methods, truth, frames } = shown();
  crops.images ??= crops.sheets.map((source) => Object.assign(new Image(), { onload: redraw, src: source }));
  choose(element("method"), methods.map((one) => one.name));
  state.method = Math.min(state.method, methods.length - 1);
  element("method").value = state.method;
  element("truth").disabled = !truth;
  document.querySelector(".of-truth").hidden = !truth;
  element("frame").max = frames - 1;
  show(Math.min(state.frame, frames - 1));
  compare();
}

function compare() {
  const means = method().errors.map((errors, hand) => `${SIDES[hand]} hand ${millimetres(meanError(errors))}`);
  element("curve").setAttribute("aria-label", `Error over time. Mean: ${means.join(", ")}`);
  redraw();
}

function turn(yaw, pitch, zoom = 1) {
  const { view } = state;
  view.yaw += yaw;
  view.pitch = Math.min(1.5, Math.max(-1.5, view.pitch + pitch));
  view.distance = Math.min(4, Math.max(0.15, view.distance * zoom));
  redraw();
}

function reset() {
  state.view = { ...HOME };
  redraw();
}

const KEYS = {
  ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, 0.1), ArrowDown: () => turn(0, -0.1),
  "+": () => turn(0, 0, 0.9), "=": () => turn(0, 0, 0.9), "-": () => turn(0, 0, 1.1), Home: reset,
  " ": () => play(!state.playing), ",": () => step(-1), ".": () => step(1),
};

scene.addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  KEYS[event.key]();
});

const pointers = new Map();

scene.addEventListener("pointerdown", (event) => {
  scene.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});

scene.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId)) return;
  const before = [...pointers.values()], [x, y] = pointers.get(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (pointers.size === 1) {
    turn(-(event.clientX - x) / 200, (event.clientY - y) / 200);
  } else {
    const apart = ([[ax, ay], [bx, by]]) => Math.hypot(ax - bx, ay - by);
    turn(0, 0, apart(before) / Math.max(1, apart([...pointers.values()])));
  }
});

for (const end of ["pointerup", "pointercancel"]) scene.addEventListener(end, (event) => pointers.delete(event.pointerId));

scene.addEventListener("wheel", (event) => {
  event.preventDefault();
  turn(0, 0, Math.exp(event.deltaY / 1000));
}, { passive: false });

function seek(event) {
  if (!event.buttons) return;
  const { left, width } = element("curve").getBoundingClientRect();
  const share = (event.clientX - left - GUTTER - THUMB) / (width - GUTTER - 2 * THUMB);
  show(Math.round(Math.min(1, Math.max(0, share)) * (shown().frames - 1)));
}

element("curve").addEventListener("pointerdown", seek);
element("curve").addEventListener("pointermove", seek);
element("recording").addEventListener("change", (event) => open(Number(event.target.value)));
element("method").addEventListener("change", (event) => { state.method = Number(event.target.value); compare(); });
element("truth").addEventListener("change", (event) => { state.truth = event.target.checked; redraw(); });
element("speed").addEventListener("change", (event) => { state.speed = Number(event.target.value); });
element("frame").addEventListener("input", (event) => show(Number(event.target.value)));
element("play").addEventListener("click", () => play(!state.playing));
element("back").addEventListener("click", () => step(-1));
element("next").addEventListener("click", () => step(1));
element("reset").addEventListener("click", reset);
scene.addEventListener("webglcontextlost", (event) => event.preventDefault());
scene.addEventListener("webglcontextrestored", () => { prepare(); redraw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new ResizeObserver(redraw).observe(scene);

if (gl) {
  prepare();
} else {
  element("failure").textContent = "This browser shows no 3D pictures (WebGL 2): crops and errors alone are shown.";
  element("failure").hidden = false;
}
choose(element("recording"), recordings.map((recording) => recording.title));
open(0);
play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
