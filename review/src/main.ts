import "./styles.css";
import { App } from "./app";
import { course } from "./screens/course";
import { review } from "./screens/review";
import { settings } from "./screens/settings";
import { signIn } from "./screens/sign-in";
import { worklist } from "./screens/worklist";

const root = document.getElementById("page");
if (root === null) throw new Error("the page has no place to stand in");
void new App(root, { worklist, review, course, settings, "sign-in": signIn }).start();
