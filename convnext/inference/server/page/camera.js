// The camera of the device, in the page's section for it. Only https and localhost have one.

const WORDS = {
  NotAllowedError: "The browser may not use the camera: allow it beside the page's address, then try again.",
  NotFoundError: "This device has no camera.",
  NotReadableError: "The camera does not start: another program may be using it.",
};

const byId = (id) => document.getElementById(id);
const [section, video, opener, shutter] = ["camera", "video", "open-camera", "capture"].map(byId);
let stream = null;
let isOpening = false; // while the browser asks for permission
let pictures = 0;

/** Make the section's buttons work: `add` takes the files of pictures, `notify` words for people. */
export function setUpCamera(add, notify) {
  opener.addEventListener("click", () => (stream ? close() : open(notify)));
  byId("close-camera").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && stream) close();
  });
  video.addEventListener("loadeddata", () => {
    shutter.disabled = false;
    shutter.focus();
  });
  shutter.addEventListener("click", async () => add([await picture()]));
}

async function open(notify) {
  notify("");
  if (!navigator.mediaDevices) notify("Browsers give a camera to pages of https and of localhost alone.");
  if (!navigator.mediaDevices || isOpening) return;
  isOpening = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      close();
      notify("The camera was switched off.");
    });
    shutter.disabled = true; // until there is an image
    video.srcObject = stream;
    section.hidden = false;
    opener.setAttribute("aria-expanded", true);
  } catch (error) {
    notify(WORDS[error.name] ?? `The camera does not start: ${error.message}`);
  }
  isOpening = false;
}

function close() {
  for (const track of stream.getTracks()) track.stop();
  stream = video.srcObject = null;
  section.hidden = true;
  opener.setAttribute("aria-expanded", false);
  opener.focus();
}

async function picture() {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  return new File([blob], `camera-${++pictures}.jpg`, { type: blob.type });
}
