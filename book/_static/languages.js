window.llmcourseLanguages = {};
