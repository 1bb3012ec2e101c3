document.getElementById("page")?.append("Contourcast");
